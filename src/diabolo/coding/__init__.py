"""A real bitstream for codes: a range coder, a uniform quantiser, their codec, and the container that holds a stream.

Imports no torch: everything here is integers and float64, the same on every machine.
"""
