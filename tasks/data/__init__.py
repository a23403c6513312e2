"""The data: where images come from, how files are read, what is measured on images."""
