// The live view of the cluster.

export class ClusterView {
  constructor(root, askKey) {
    this.root = root;
    this.askKey = askKey;
  }

  shown() {}

  left() {}
}
