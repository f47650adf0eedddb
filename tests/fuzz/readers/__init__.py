"""How each reader is given bytes: a function for each target, which takes any, and returns or raises that reader's documented errors."""
