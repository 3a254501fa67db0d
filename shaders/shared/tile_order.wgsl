    // SWIZZLE row tiles are walked together before the next column tile, so that operands are found in the cache
    let row_tiles = params.tiles / params.col_tiles;
    let panel = tile / ({{ SWIZZLE }}u * params.col_tiles);
    let within = tile - panel * {{ SWIZZLE }}u * params.col_tiles;
    let height = min({{ SWIZZLE }}u, row_tiles - panel * {{ SWIZZLE }}u);
    let row_tile = (panel * {{ SWIZZLE }}u + within % height) * {{ ROWS }}u;
    let col_tile = within / height * {{ COLS }}u;
