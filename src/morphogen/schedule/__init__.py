"""Growth schedules: plain data, and pure functions of progress."""
