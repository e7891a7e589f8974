"""The data cache: functions whose results are stored, and a session of requests."""
