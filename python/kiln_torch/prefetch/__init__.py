"""What a program used last time, fetched while it still imports torch and builds its model.

``program`` says which program this is, ``listed`` is the list of what it used, an
entry of the cluster as any other. ``helper`` is a process of its own: it fetches and
verifies what is listed and hands it over as sealed memory, so that this process has
no thread and no grpc because of it, and forks as it always did. ``received`` is its
end here, ``remembered`` brings the list up to date behind the first call. ``triton_key``
has what Triton would find out within the first call found out meanwhile.
"""
