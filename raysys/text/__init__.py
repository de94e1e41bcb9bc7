"""Items, histories and queries as text."""
