"""What a person or a schedule does with finished runs: gc, promote, reproduce, score."""
