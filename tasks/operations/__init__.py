"""What a person or a schedule does with finished runs: collect garbage, promote, reproduce, score."""
