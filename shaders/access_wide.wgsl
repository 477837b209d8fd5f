// Access to pages of Element = vec4<f32>: every group of four channels is aligned to 16 bytes and whole.

fn load1(spot: Spot) -> f32 {
    return read_element(spot.x, spot.y / 4u)[spot.y % 4u];
}

// Only where no other thread writes the three neighbours: WGSL stores whole vectors.
fn store1(spot: Spot, v: f32) {
    var element = read_element(spot.x, spot.y / 4u);
    element[spot.y % 4u] = v;
    write_element(spot.x, spot.y / 4u, element);
}

// The first `valid` of four channels, here all or none; zero for the others.
fn load4(spot: Spot, valid: u32) -> Quad {
    if valid == 0u {
        return quad(0.0);
    }
    return read_element(spot.x, spot.y / 4u);
}

fn store4(spot: Spot, v: Quad, valid: u32) {
    if valid > 0u {
        write_element(spot.x, spot.y / 4u, v);
    }
}
