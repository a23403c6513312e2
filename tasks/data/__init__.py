"""The data: their sources, how files are read, and what is measured on images."""
