"""The web page: its layout, its requests, its door."""
