"""The records that steps exchange. Import each from its own module."""
