"""Device mesh, sharding rules, cluster start-up and the compile cache."""
