"""The core: entries, their validity, and one render for many processes. It knows neither HTTP nor functions."""
