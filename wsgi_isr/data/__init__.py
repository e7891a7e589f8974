"""The data cache: functions whose results are kept, and a session of requests."""
