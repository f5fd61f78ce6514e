"""Training: loss, optimizer, schedule, the compiled step and the loop around it."""
