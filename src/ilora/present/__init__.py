"""What every page, table and picture shares."""
