"""Training on a ComfyUI elsewhere, over its own API: this side of it.

workflow.py   a saved workflow made into a graph
work.py       the graph to send, and the files here that it reads
worker.py     the other ComfyUI: what it has, uploads, its queue, its runs
follow.py     one graph from being sent to its end, through lost connections
fetch.py      a run brought here
"""
