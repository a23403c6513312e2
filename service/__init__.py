"""What `make up` keeps running: the servers, their supervisor, crash recovery. Also the environment of all commands."""
