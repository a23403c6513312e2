"""What `make up` keeps running: the servers, their supervisor, crash recovery; and the environment of every command."""
