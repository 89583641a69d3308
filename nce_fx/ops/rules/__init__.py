"""What operations do to channels, by theme: the functions that rows of the table name."""
