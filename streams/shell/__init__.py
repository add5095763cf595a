"""The shell: runs pure processors on Kafka. The only package in `streams` that imports faust and aiokafka.

`worker.run(Deployment, Options)` is the door; `topics.provision` makes the topics. Inside: `consumer` (what is in
the air, by subclassing Faust's own driver), `loop` (one partition: decode, step, send, await, ack), `runner` (one
processor's partitions), `sinks` (the law SINK), `producer`, `snapshots`, `views`, `reader`, `codec`.
"""
