"""The engine that is a Ray cluster; ``session.py`` alone imports Ray."""
