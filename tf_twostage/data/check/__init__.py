"""What a log is worth: facts, findings and a picture for those who keep it."""
