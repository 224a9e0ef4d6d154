"""Was it worth asking? Every strategy and its peers on labelled streams, with the same models and the same labels."""
