"""What measures and records: speed, long runs, differences. Nothing here is a test."""
