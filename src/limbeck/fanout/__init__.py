"""Fan-out with Ray Train: ingest, experts, and distill with several pairs, over workers here or on a cluster.

Three kinds of processes, one module each. The command's own process never imports Ray: `supervisor` starts a driver,
is told of its progress, and outlives it. `driver` talks to Ray, which may end the process that it lives in when the
head goes. `worker` is what Ray runs, once a worker; its share of an ingest is `parts`. They speak by the `messages`.
`kuberay` renders the cluster that a run asks for.
"""
