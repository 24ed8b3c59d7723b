"""Other people's networks on the fused operations: patterns in dynamo's graphs are replaced.

`accelerate` and `backend` are what is called; `rewrite` replaces each chain (`chains`) that starts
at a convolution or a norm, as `rules` allow it; `operations`, `norms` and `hazards` read nodes.
"""
