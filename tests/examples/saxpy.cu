// y = a * x + y. Compiled by NVRTC on a node; needs no GPU: kiln compile saxpy.cu --target sm_90
extern "C" __global__ void saxpy(int n, float a, const float* x, float* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
