builtin.module {
  %x = tile.dram "x" : !tile.tensor<bits[4x2x8x8x16]>
  %y = tile.dram "y" : !tile.tensor<f32[4x2x8x8x32]>
  %rows = tile.dram "forward c1.constants" rows <"0.0; 0.5; 1.0; 0.0"> : !tile.tensor<f32[4x32]>
  %copy = tile.dram "c1.weight.f16" shadow "c1.weight" : !tile.tensor<f16[9x16x32]>
  %gu = tile.dram "gu" : !tile.tensor<slots.f16[4x2x8x8x96 by 32]>
  tile.signal DMAOUT, 7 count 2
  tile.stage "forward c1" {
    %state = tile.alloc "state" in U : 1 x f32[1x8x8x32] at 0x40
    tile.for "n" %n to 2 {
      tile.for "t" %t to 4 {
        %inputs = tile.alloc "inputs" in S : 2 x bits[1x1x10x10x16] at 0x0
        %tables = tile.alloc "tables" in L : 2 x lut.f32[9x4x16x32]
        %par = tile.alloc "par" in A : 1 x f32[4x32]
        tile.load %x[-1*%t + 3, %n, -1, -1, 0] sizes 1x1x10x10x16 to %inputs
        tile.load %rows[1, 0] sizes 1x32 to %par[0]
        tile.signal DMAIN, 0
        tile.wait FE, 0
        %acc = tile.alloc "acc" in A : 2 x f32[1x1x8x8x32]
        %spikes = tile.alloc "spikes" in S : 2 x bits[1x1x8x8x32]
        tile.fe_run acc=%acc, s=%inputs, lut=%tables {c=16, dtype="f32", fan=4, imgs=1, k=32, kh=3, kw=3, oh=8, ow=8, sh=1, shape="32x64", sw=1}
        tile.for "step" %step to 1 {
          %bits = tile.alloc "bits" in S : 1 x bits[1x8x8x32]
          tile.lif acc=%acc[%step], par=%par, us=%state, ss=%bits, so=%spikes[%step] first(%t, %step) {bounded="no", counted="no", drive="plain", dtype="f32", height=1.0, k=32, lowest=0.0, most=0, n=64, periodic="no", reset="hard", save_m="no", save_u="no", spike="gt", surrogate="rectangular", ublk=0, width=1.0e-05}
        }
        tile.store %y[%t, %n, 0, 0, 0] sizes 1x1x8x8x32 from %acc
      }
    }
  }
}
