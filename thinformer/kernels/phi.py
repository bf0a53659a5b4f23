"""The formulas phi of the kernels, and the integer tags that choose one of them.

Most kernels are phi(<x, y>) or phi(|x - y|^2). Points are divided by the bandwidth first, so all
kernels share one hot loop: a matrix product or squared distances, then phi for each entry.

phi is a plain Python function of scalars. Each body compiles it for its own target (`bind` in
`thinformer.cpu.jit`). An integer tag chooses the kernel: with a function as an argument, Numba's
disk cache would not work. `sobolev`, `stein` and user functions have loops of their own.

A phi has no number literals: a literal would turn float32 into float64.
"""

from math import exp, log1p, sqrt

# of a product
LINEAR, POLYNOMIAL, EXPONENTIAL = range(3)
# of a squared distance
GAUSSIAN, LAPLACE, INVERSE_MULTIQUADRIC, MATERN_3_2, MATERN_5_2 = range(3, 8)
RATIONAL_QUADRATIC, ENERGY = range(8, 10)
# of another form
SOBOLEV, STEIN, PAIRWISE, OF_PRODUCTS, TABLE = range(10, 15)
OF_DISTANCE = GAUSSIAN  # the first of them


def kind_of(tag):
    """Return the first tag of a kernel's kind: of a product, of a distance, or of another form."""
    return LINEAR if tag < OF_DISTANCE else OF_DISTANCE if tag < SOBOLEV else int(tag)


def phi_linear(product, constant, degree):
    return product + constant


def phi_polynomial(product, constant, degree):
    return (product + constant) ** degree


def phi_exponential(product, constant, degree):
    # the constant is a shift that keeps exp from overflowing; halving keeps the same points
    return exp(product - constant)


def phi_gaussian(distance, constant, degree):
    return exp(-distance)


def phi_laplace(distance, constant, degree):
    return exp(-sqrt(distance))


def phi_inverse_multiquadric(distance, constant, degree):
    return constant / sqrt(constant + distance)


def phi_matern_3_2(distance, constant, degree):
    root = sqrt(distance)
    return (constant + root) * exp(-root)


def phi_matern_5_2(distance, constant, degree):
    root = sqrt(distance)
    return (constant + root + degree * distance) * exp(-root)


def phi_rational_quadratic(distance, constant, degree):
    return exp(-degree * log1p(distance))  # of a large degree, a power has few digits


def phi_energy(distance, constant, degree):
    return -sqrt(distance)


def sobolev_factor(x, y, coefficients):
    """Return 1 plus a Bernoulli polynomial of the difference's fractional part (Horner's rule)."""
    difference = abs(x - y)
    value = coefficients[6]
    for i in range(6):
        value = value * difference + coefficients[5 - i]
    return value


def stein_of(distance, spread, products, scores, divergence, constant, degree):
    """Return the Stein kernel of two points x, y with scores s, t and bandwidths l_j.

    With the shortest bandwidth m and z_j = (x_j - y_j) / l_j, sums over j:

    distance : of z_j^2
    spread : of z_j^2 (m / l_j)^2; it is the distance where there is one bandwidth
    products : of (x_j - y_j) (s_j - t_j) / l_j^2
    scores : of s_j t_j
    divergence : of 1 / l_j^2
    constant : 1
    degree : 3 / m^2
    """
    q = constant / (constant + distance)
    root = sqrt(q)
    return root * (scores + q * (products + divergence - degree * spread * q))
