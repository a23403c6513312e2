"""The records that steps exchange; import each from its own module."""
