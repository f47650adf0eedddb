"""Feeds bytes to each parser: a function for each target that takes any bytes, and returns or raises the parser's
documented errors.
"""
