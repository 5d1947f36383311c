"""The plain way: BPE looks at all neighbours for each join, unigram cuts the text from its end."""

HEX = "0123456789ABCDEF"
BYTES = {f"<0x{high}{low}>": 16 * HEX.index(high) + HEX.index(low) for high in HEX for low in HEX}
SPACE = chr(0x2581)


def encode_bpe(text, pieces):
    parts = [SPACE if character == " " else character for character in (text and f" {text}")]
    while True:
        joins = []
        for place in range(len(parts) - 1):
            joined = parts[place] + parts[place + 1]
            if joined in pieces and joined not in BYTES:
                joins.append((-pieces[joined], place))
        if not joins:
            return spelled_out(parts, pieces)
        _, place = min(joins)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def encode_unigram(text, pieces):
    text = f" {text}".replace(" ", SPACE) if text else ""
    known = [piece for piece in pieces if piece not in BYTES]
    unknown = min(pieces[piece] for piece in known) - 10
    ways = {len(text): (0.0, 0)}  # from each place on: the best sum, and how long its first part is
    for start in reversed(range(len(text))):
        found = [piece for piece in known if text.startswith(piece, start)]
        options = [(pieces[piece] + ways[start + len(piece)][0], len(piece)) for piece in found]
        if text[start] not in found:
            options.append((unknown + ways[start + 1][0], 1))
        ways[start] = max(options)
    parts = []
    start = 0
    while start < len(text):
        length = ways[start][1]
        parts.append(text[start : start + length])
        start += length
    return spelled_out(parts, pieces)


def spelled_out(parts, pieces):
    out = []
    for part in parts:
        names = ["<0x%02X>" % byte for byte in part.encode("utf-8")]  # noqa: UP031
        if part in pieces:
            out.append(part)
        elif set(names) <= set(pieces):
            out.extend(names)
        elif not out or out[-1] != "<unk>":
            out.append("<unk>")
    return out


def decode(pieces):
    text = ""
    data = b""  # the bytes of the byte pieces just before
    for number, piece in enumerate(pieces):
        if piece in BYTES:
            data += bytes([BYTES[piece]])
            continue
        text += read(data)
        data = b""
        if piece == "<unk>":
            text += " \u2047 "
        elif number == 0 and piece.startswith(SPACE):
            text += piece[1:].replace(SPACE, " ")
        else:
            text += piece.replace(SPACE, " ")
    return text + read(data)


def read(data):
    text = ""
    while data:
        for length in (1, 2, 3, 4):
            try:
                text += data[:length].decode("utf-8")
            except UnicodeDecodeError:
                continue
            data = data[length:]
            break
        else:
            text += "\ufffd"
            data = data[1:]
    return text
