"""The core: entries, their validity, and one render in the cluster. The core knows neither HTTP nor functions."""
