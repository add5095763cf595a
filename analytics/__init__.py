"""What is learned: posteriors, online models, mining, strategies, beliefs; pure, on top of codecs."""
