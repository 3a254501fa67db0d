#!/usr/bin/env python3
"""Prints what run.sh gathered: per kernel registers, spills and sizes, and the instructions of its hottest loop.

    report.py FOLDER [NAME]     (only kernels whose name begins with NAME)
"""
import collections
import pathlib
import re
import sys

SHORT = {  # of the drivers' names, those worth a column
    "Subgroup": "lanes", "VGPRs": "vgprs", "Number of GPRs": "gprs", "Max live registers": "live",
    "Spilled VGPRs": "spilled", "Spill Count": "spills", "Fill Count": "fills", "SLM Size": "scratch",
    "Scratch size": "scratch", "Scratch Memory Size": "scratch", "LDS size": "shared", "Workgroup Memory Size": "shared",
    "Subgroups per SIMD": "waves", "Instructions": "instr", "Instruction Count": "instr", "Instruction count": "instr",
}


def kernels(folder):
    """(name, {statistic: value}) of every pipeline, and how many failed."""
    found, failed = [], 0
    for line in (folder / "report.tsv").read_text().splitlines():
        name, *numbers = line.split("\t")
        if name == "FAILED":
            failed += 1
            continue
        found.append((name, dict(n.rsplit("=", 1) for n in numbers)))
    return found, failed


def kind(word):
    """What an instruction of AMD's is counted as."""
    if word.startswith("v_wmma"):
        return "matrix"
    if re.match(r"v_(pk_|dual_)?(fma|mac|mad)", word):
        return "fma"
    if word.startswith(("ds_", "buffer_", "global_", "scratch_")):
        return word
    return {"v_": "other vector"}.get(word[:2])


def amd(text):
    start = text.find("==== Assembly")
    blocks = re.split(r"\n(?=BB\d+:)", text[start:]) if start >= 0 else []
    return [collections.Counter(filter(None, map(kind, re.findall(r"^\s+(\w+)", b, re.M)))) for b in blocks]


def intel(text):
    """A message's next line says what of: slm is workgroup memory, ugm storage and what was spilled."""
    blocks = [collections.Counter()]
    lines = text.splitlines()
    for line, after in zip(lines, lines[1:] + [""]):
        if re.match(r"\s*LABEL\d+:", line):
            blocks.append(collections.Counter())
        found = re.match(r"\s*(?:\([^)]*\)\s*)?([a-z]\w*)(?:\.\S+)?\(\d+\)\s.*", line)
        if not found or found[1] == "sync":
            continue
        message = re.search(r"(slm|ugm|gateway) MsgDesc: \(\s*(\w+)", after) if found[1] == "send" else None
        names = {"dpas": "matrix", "mad": "fma", "send": "other message"}
        blocks[-1][" ".join(message.groups()) if message else names.get(found[1], "other vector")] += 1
    return blocks


def nak(text):
    """NVK's, as its compiler prints them: `result = instruction operands`."""
    blocks = []
    for block in re.split(r"\n(?=\s*block[ .])", text[text.find("==== NAK assembly"):]):
        words = re.findall(r"^\s*(?:@!?\S+\s+)?(?:[^=\n/]+ = )?([a-z]\w*)", block, re.M)
        kinds = {"hmma": "matrix", "ffma": "fma", "ld": "load or store", "st": "load or store", "ldsm": "load or store"}
        words = [w for w in words if w not in ("block", "nop")]
        blocks.append(collections.Counter(kinds.get(w, "other") for w in words))
    return blocks


def hottest(path):
    """Instructions of the basic blocks with matrix multiplications, or else of the one with most multiply-adds."""
    text = path.read_bytes().decode("latin1")
    if "==== NAK assembly" in text:
        counts = nak(text)
    else:
        counts = intel(text) if re.search(r"^\s*send\(", text, re.M) else amd(text)
    on_units = [c for c in counts if c["matrix"]]
    return sum(on_units, collections.Counter()) or max(counts, key=lambda c: c["fma"], default=None)


def main():
    folder = pathlib.Path(sys.argv[1])
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    found, failed = kernels(folder)
    found = [(n, k) for n, k in found if n.startswith(wanted)]
    columns = [c for c in dict.fromkeys(SHORT) if any(c in k for _, k in found)]
    rows = collections.Counter((name, *(k.get(c, "-") for c in columns)) for name, k in found)
    print(f"{'kernel':36}" + "".join(f"{SHORT[c]:>9}" for c in columns) + "   how many")
    for (name, *numbers), count in sorted(rows.items()):
        print(f"{name:36}" + "".join(f"{n:>9}" for n in numbers) + f"   {count}")
    loops = collections.Counter()
    for path in sorted((folder / "code").glob("*.asm")):
        name = path.name.rsplit("_", 1)[0]
        block = hottest(path) if name.startswith(wanted) else None
        if block and (block["matrix"] or block["fma"] >= 16):
            loops[name, " ".join(f"{k}:{v}" for k, v in sorted(block.items()))] += 1
    if loops:
        print("\nthe blocks with matrix multiplications, or the one with most multiply-adds")
        for (name, text), count in sorted(loops.items()):
            print(f"{name:36} {text}   {count}")
    print(f"\n{len(found)} pipelines compiled, {failed} failed")
    return 1 if failed or not found else 0


if __name__ == "__main__":
    sys.exit(main())
