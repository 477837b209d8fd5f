// What the shaders of separable convolutions share: depthwise convolutions of a job's map.

// h = scale x + shift, for a quad of channels.
struct Norm {
    scale: Quad,
    shift: Quad,
}

fn norm_of(j: u32, channel: u32, valid: u32) -> Norm {
    var n = Norm(quad(1.0), quad(0.0));
    if (table[j].flags & NORM) != 0u {
        n.scale = inverse_deviation(load4(ahead(table[j].variance, channel), valid), table[j].eps);
        if (table[j].flags & AFFINE) != 0u {
            n.scale = load4(ahead(table[j].gamma, channel), valid) * n.scale;
            n.shift = load4(ahead(table[j].beta, channel), valid);
        }
        n.shift -= n.scale * load4(ahead(table[j].mean, channel), valid);
    }
    return n;
}

fn relu(n: Norm, x: Quad) -> Quad {
    return rectified(n.scale * x + n.shift);
}

// The depthwise result at an output pixel. Coordinates before the image wrap to large numbers.
fn depthwise(j: u32, row: u32, channel: u32, valid: u32) -> Quad {
    let n = norm_of(j, channel, valid);
    let w = table[j].y_w;
    let image = row / (table[j].y_h * w);
    let pixel = row % (table[j].y_h * w);
    let top = pixel / w * table[j].stride - table[j].pad;
    let left = pixel % w * table[j].stride - table[j].pad;
    let x = ahead(table[j].x, image * table[j].x_h * table[j].x_w * table[j].x_stride + channel);
    var weights = ahead(table[j].depthwise, channel);

    var sum = quad(0.0);
    let reach = table[j].kernel * table[j].dilation;
    for (var iy = top; iy != top + reach; iy += table[j].dilation) {
        for (var ix = left; ix != left + reach; ix += table[j].dilation) {
            if iy < table[j].x_h && ix < table[j].x_w {
                let r = relu(n, load4(ahead(x, (iy * table[j].x_w + ix) * table[j].x_stride), valid));
                sum += load4(weights, valid) * r;
            }
            weights.y += table[j].tap_stride;
        }
    }
    return sum;
}
