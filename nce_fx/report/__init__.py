"""What a rewrite did and what came of it: records that are validated, tables for people, one page for the browser."""
