// Access to pages of Element = f32, whatever the alignment.

fn load1(spot: Spot) -> f32 {
    return read_element(spot.x, spot.y);
}

fn store1(spot: Spot, v: f32) {
    write_element(spot.x, spot.y, v);
}

// The first `valid` of four channels; zero for the others.
fn load4(spot: Spot, valid: u32) -> Quad {
    var v = quad(0.0);
    for (var k = 0u; k < valid; k++) {
        v[k] = read_element(spot.x, spot.y + k);
    }
    return v;
}

fn store4(spot: Spot, v: Quad, valid: u32) {
    var element = v;
    for (var k = 0u; k < valid; k++) {
        write_element(spot.x, spot.y + k, element[k]);
    }
}
