"""MindSpore Lite: preparing files for its converter (`files`), and running converted ones (`backend`, `session`)."""
