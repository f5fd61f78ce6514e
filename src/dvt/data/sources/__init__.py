"""Where images come from: folders, MindRecord files, CIFAR, Fashion-MNIST, and how to get or make these."""
