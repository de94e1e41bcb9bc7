"""Watching what is served: drift against the training data, and what came of the lists shown.

`reference` is written into a bundle when it is trained, `windows` by replicas as they answer;
`drift` compares the two, `feedback` joins answers with the events that they got. Nothing here
knows serving: the stages, the console and whoever retrains read the same files.
"""
