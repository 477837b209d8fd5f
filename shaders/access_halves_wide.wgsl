// Access to pages of Element = vec2<u32>, some of whose tensors are stored in halves: every group of four channels is whole,
// and aligned to 16 bytes, or to 8 in halves. A group of halves is one element, so that no thread writes its neighbour's.

fn load1(spot: Spot) -> f32 {
    if in_halves(spot) {
        let pair = read_element(page_of(spot), spot.y / 4u)[spot.y / 2u % 2u];
        return unpack2x16float(pair)[spot.y % 2u];
    }
    return bitcast<f32>(read_element(spot.x, spot.y / 2u)[spot.y % 2u]);
}

// Not in halves, and only where no other thread writes the neighbour: WGSL stores whole vectors.
fn store1(spot: Spot, v: f32) {
    var element = read_element(spot.x, spot.y / 2u);
    element[spot.y % 2u] = bitcast<u32>(v);
    write_element(spot.x, spot.y / 2u, element);
}

// The first `valid` of four channels, here all or none; zero for the others.
fn load4(spot: Spot, valid: u32) -> Quad {
    if valid == 0u {
        return quad(0.0);
    }
    if in_halves(spot) {
        let pairs = read_element(page_of(spot), spot.y / 4u);
        return Quad(unpack2x16float(pairs.x), unpack2x16float(pairs.y));
    }
    let first = bitcast<vec2<f32>>(read_element(spot.x, spot.y / 2u));
    return Quad(first, bitcast<vec2<f32>>(read_element(spot.x, spot.y / 2u + 1u)));
}

fn store4(spot: Spot, v: Quad, valid: u32) {
    if valid == 0u {
        return;
    }
    if in_halves(spot) {
        write_element(page_of(spot), spot.y / 4u, vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw)));
    } else {
        write_element(spot.x, spot.y / 2u, bitcast<vec2<u32>>(v.xy));
        write_element(spot.x, spot.y / 2u + 1u, bitcast<vec2<u32>>(v.zw));
    }
}
