"""The web page: its layout, requests, stored files and access checks; live/ is the live page in the browser."""
