// Access to pages of Element = u32, some of whose tensors are stored in halves. Those have whole groups of four channels,
// each aligned to two elements; the others may have any alignment.

fn load1(spot: Spot) -> f32 {
    if in_halves(spot) {
        return unpack2x16float(read_element(page_of(spot), spot.y / 2u))[spot.y % 2u];
    }
    return bitcast<f32>(read_element(spot.x, spot.y));
}

// Not in halves.
fn store1(spot: Spot, v: f32) {
    write_element(spot.x, spot.y, bitcast<u32>(v));
}

// The first `valid` of four channels; zero for the others. In halves all or none.
fn load4(spot: Spot, valid: u32) -> Quad {
    var v = quad(0.0);
    if in_halves(spot) {
        if valid > 0u {
            let first = unpack2x16float(read_element(page_of(spot), spot.y / 2u));
            v = Quad(first, unpack2x16float(read_element(page_of(spot), spot.y / 2u + 1u)));
        }
        return v;
    }
    for (var k = 0u; k < valid; k++) {
        v[k] = bitcast<f32>(read_element(spot.x, spot.y + k));
    }
    return v;
}

fn store4(spot: Spot, v: Quad, valid: u32) {
    if in_halves(spot) {
        if valid > 0u {
            write_element(page_of(spot), spot.y / 2u, pack2x16float(v.xy));
            write_element(page_of(spot), spot.y / 2u + 1u, pack2x16float(v.zw));
        }
        return;
    }
    var element = v;
    for (var k = 0u; k < valid; k++) {
        write_element(spot.x, spot.y + k, bitcast<u32>(element[k]));
    }
}
