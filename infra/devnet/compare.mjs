// What other implementations make of our data: viem hashes typed data, OpenZeppelin builds and checks Merkle trees.
// JSON on stdin: {typed: [{domain, types, primaryType, message}], tree: {types, leaves, root, proofs}};
// JSON on stdout: {digests, root, proofs, accepted}. Node resolves the packages from this folder.
import { readFileSync } from "node:fs";
import { StandardMerkleTree } from "@openzeppelin/merkle-tree";
import { hashTypedData } from "viem";

const { typed, tree } = JSON.parse(readFileSync(0, "utf8"));
const theirs = StandardMerkleTree.of(tree.leaves, tree.types, { sortLeaves: false });
theirs.validate();
const accepted = tree.leaves.map((leaf, i) => StandardMerkleTree.verify(tree.root, tree.types, leaf, tree.proofs[i]));
process.stdout.write(
  JSON.stringify({
    digests: typed.map((data) => hashTypedData(data)),
    root: theirs.root,
    proofs: tree.leaves.map((_, i) => theirs.getProof(i)),
    accepted,
  }),
);
