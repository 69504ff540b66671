# Counts the instructions of the loops of the packed Q4_K kernel for AVX-512 VNNI, in the output of
#   objdump -d -C --no-show-raw-insn FILE
# for a FILE built with RUSTFLAGS=-Csymbol-mangling-version=v0, whose symbols name the weight type.
# A loop is what lies between a jump and its earlier target, inner loops included.
/^[0-9a-f]+ <.*avx512vnni::multiply.*FourBits/ { on = 1 }
/^$/ { on = 0 }
on { at[$1] = NR; op[NR] = $2 }
on && $2 ~ /^j/ && ($3 ":") in at {
    split("", n)
    for (i = at[$3 ":"]; i <= NR; i++) n[op[i]]++
    printf "%4d instructions: %d vpdpbusd, %d vpmulld, %d vcvtdq2ps, %d vmulps, %d prefetcht0\n",
        NR - at[$3 ":"] + 1, n["vpdpbusd"], n["vpmulld"], n["vcvtdq2ps"], n["vmulps"], n["prefetcht0"]
}
