"""An example service: an exported cascade behind HTTP. Start reading at `app`, then `scheduler`."""
