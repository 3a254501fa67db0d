// A libvulkan.so.1 that lets a program believe in a GPU that is not there, so that the driver compiles its kernels: see README.md.
//
// It stands before the real loader. Commands, submissions and waits do nothing and succeed, semaphores and timestamps are kept here, and
// memory types are made up where a driver without its kernel module has none. Every compute pipeline is compiled as ever, with the
// driver's statistics, which are written down when the program names it (wgpu does with WGPU_DEBUG=1).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vulkan/vulkan.h>

static PFN_vkGetInstanceProcAddr loader;
static PFN_vkGetDeviceProcAddr of_device;
static VkInstance instance;
static VkDevice device;
static int has_statistics;
static FILE *report;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void load(void) {
    if (loader) return;
    const char *path = getenv("NULL_DEVICE_LOADER");
    void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!library) {
        fprintf(stderr, "null_device: NULL_DEVICE_LOADER must name the real libvulkan.so.1: %s\n", path ? dlerror() : "it is not set");
        exit(2);
    }
    loader = (PFN_vkGetInstanceProcAddr)dlsym(library, "vkGetInstanceProcAddr");
    const char *file = getenv("NULL_DEVICE_REPORT");
    report = file ? fopen(file, "a") : stderr;
    if (!report) {
        perror(file);
        exit(2);
    }
}

// ---- what would run ----

static VkResult nothing(void) { return VK_SUCCESS; }

enum { MOST_SEMAPHORES = 1 << 16 };
static uint64_t semaphores[MOST_SEMAPHORES];
static uintptr_t semaphore_count = 1;

static const void *in_chain(const void *chain, VkStructureType type) {
    for (const VkBaseInStructure *s = chain; s; s = s->pNext)
        if (s->sType == type) return s;
    return NULL;
}

static VkResult create_semaphore(VkDevice d, const VkSemaphoreCreateInfo *info, const VkAllocationCallbacks *a, VkSemaphore *s) {
    const VkSemaphoreTypeCreateInfo *type = in_chain(info->pNext, VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO);
    pthread_mutex_lock(&lock);
    uintptr_t id = semaphore_count < MOST_SEMAPHORES ? semaphore_count++ : 0;
    semaphores[id] = type ? type->initialValue : 0;
    pthread_mutex_unlock(&lock);
    *s = (VkSemaphore)id;
    return id ? VK_SUCCESS : VK_ERROR_OUT_OF_HOST_MEMORY;
}

static void destroy_semaphore(VkDevice d, VkSemaphore s, const VkAllocationCallbacks *a) {}

static VkResult semaphore_value(VkDevice d, VkSemaphore s, uint64_t *value) {
    *value = semaphores[(uintptr_t)s];
    return VK_SUCCESS;
}

static VkResult signal_semaphore(VkDevice d, const VkSemaphoreSignalInfo *info) {
    semaphores[(uintptr_t)info->semaphore] = info->value;
    return VK_SUCCESS;
}

static void reach(VkSemaphore s, uint64_t value) {
    if (value > semaphores[(uintptr_t)s]) semaphores[(uintptr_t)s] = value;
}

static VkResult submit(VkQueue q, uint32_t count, const VkSubmitInfo *infos, VkFence fence) {
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < count; i++) {
        const VkTimelineSemaphoreSubmitInfo *timeline =
            in_chain(infos[i].pNext, VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO);
        for (uint32_t j = 0; j < infos[i].signalSemaphoreCount; j++)
            reach(infos[i].pSignalSemaphores[j],
                  timeline && j < timeline->signalSemaphoreValueCount ? timeline->pSignalSemaphoreValues[j] : 1);
    }
    pthread_mutex_unlock(&lock);
    return VK_SUCCESS;
}

static VkResult submit2(VkQueue q, uint32_t count, const VkSubmitInfo2 *infos, VkFence fence) {
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t j = 0; j < infos[i].signalSemaphoreInfoCount; j++)
            reach(infos[i].pSignalSemaphoreInfos[j].semaphore, infos[i].pSignalSemaphoreInfos[j].value);
    pthread_mutex_unlock(&lock);
    return VK_SUCCESS;
}

static VkResult query_results(VkDevice d, VkQueryPool p, uint32_t first, uint32_t n, size_t size, void *data, VkDeviceSize stride,
                              VkQueryResultFlags flags) {
    memset(data, 0, size);
    return VK_SUCCESS;
}

// ---- memory ----

enum { MADE_UP_TYPES = 4 };

static const VkDeviceSize HEAP = (VkDeviceSize)16 << 30;

static void make_up(VkPhysicalDeviceMemoryProperties *m) {
    // enough for a run, whatever the shim says
    for (uint32_t i = 0; i < m->memoryHeapCount; i++)
        if (m->memoryHeaps[i].size < HEAP) m->memoryHeaps[i].size = HEAP;
    if (m->memoryTypeCount) return;
    const VkMemoryPropertyFlags local = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, visible = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT,
                                coherent = VK_MEMORY_PROPERTY_HOST_COHERENT_BIT, cached = VK_MEMORY_PROPERTY_HOST_CACHED_BIT;
    memset(m, 0, sizeof *m);
    m->memoryHeapCount = 2;
    m->memoryHeaps[0] = (VkMemoryHeap){HEAP, VK_MEMORY_HEAP_DEVICE_LOCAL_BIT};
    m->memoryHeaps[1] = (VkMemoryHeap){HEAP, 0};
    m->memoryTypeCount = MADE_UP_TYPES;
    m->memoryTypes[0] = (VkMemoryType){local, 0};
    m->memoryTypes[1] = (VkMemoryType){visible | coherent, 1};
    m->memoryTypes[2] = (VkMemoryType){local | visible | coherent, 0};
    m->memoryTypes[3] = (VkMemoryType){visible | coherent | cached, 1};
}

static void memory_properties(VkPhysicalDevice p, VkPhysicalDeviceMemoryProperties *m) {
    ((PFN_vkGetPhysicalDeviceMemoryProperties)loader(instance, "vkGetPhysicalDeviceMemoryProperties"))(p, m);
    make_up(m);
}

static void memory_properties2(VkPhysicalDevice p, VkPhysicalDeviceMemoryProperties2 *m) {
    ((PFN_vkGetPhysicalDeviceMemoryProperties2)loader(instance, "vkGetPhysicalDeviceMemoryProperties2"))(p, m);
    make_up(&m->memoryProperties);
    VkPhysicalDeviceMemoryBudgetPropertiesEXT *budget =
        (void *)in_chain(m->pNext, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT);
    for (uint32_t i = 0; budget && i < m->memoryProperties.memoryHeapCount; i++) {
        budget->heapBudget[i] = m->memoryProperties.memoryHeaps[i].size;
        budget->heapUsage[i] = 0;
    }
}

static PFN_vkGetBufferMemoryRequirements real_requirements;
static void requirements(VkDevice d, VkBuffer b, VkMemoryRequirements *r) {
    real_requirements(d, b, r);
    if (!r->memoryTypeBits) r->memoryTypeBits = (1u << MADE_UP_TYPES) - 1;
}

static PFN_vkGetBufferMemoryRequirements2 real_requirements2;
static void requirements2(VkDevice d, const VkBufferMemoryRequirementsInfo2 *b, VkMemoryRequirements2 *r) {
    real_requirements2(d, b, r);
    if (!r->memoryRequirements.memoryTypeBits) r->memoryRequirements.memoryTypeBits = (1u << MADE_UP_TYPES) - 1;
}

// ---- pipelines ----

static PFN_vkCreateShaderModule real_module;
static VkResult create_module(VkDevice d, const VkShaderModuleCreateInfo *info, const VkAllocationCallbacks *a, VkShaderModule *m) {
    VkResult result = real_module(d, info, a, m);
    const char *folder = getenv("NULL_DEVICE_SPIRV");
    if (folder && result == VK_SUCCESS) {
        static unsigned long count;
        char path[4096];
        pthread_mutex_lock(&lock);
        snprintf(path, sizeof path, "%s/%lu.spv", folder, count++);
        pthread_mutex_unlock(&lock);
        FILE *file = fopen(path, "w");
        if (file) {
            fwrite(info->pCode, 1, info->codeSize, file);
            fclose(file);
        }
    }
    return result;
}

static PFN_vkCreateComputePipelines real_pipelines;
static VkResult create_pipelines(VkDevice d, VkPipelineCache c, uint32_t n, const VkComputePipelineCreateInfo *infos,
                                 const VkAllocationCallbacks *a, VkPipeline *p) {
    VkComputePipelineCreateInfo *wanted = malloc(n * sizeof *wanted);
    memcpy(wanted, infos, n * sizeof *wanted);
    for (uint32_t i = 0; has_statistics && i < n; i++)
        wanted[i].flags |= VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR |
                           (getenv("NULL_DEVICE_CODE") ? VK_PIPELINE_CREATE_CAPTURE_INTERNAL_REPRESENTATIONS_BIT_KHR : 0);
    VkResult result = real_pipelines(d, c, n, wanted, a, p);
    free(wanted);
    if (result != VK_SUCCESS) {
        pthread_mutex_lock(&lock);
        fprintf(report, "FAILED\tVkResult %d\n", result);
        fflush(report);
        pthread_mutex_unlock(&lock);
    }
    return result;
}

static void write_code(const VkPipelineExecutableInfoKHR *info, const char *folder, const char *name) {
    PFN_vkGetPipelineExecutableInternalRepresentationsKHR get =
        (void *)of_device(device, "vkGetPipelineExecutableInternalRepresentationsKHR");
    uint32_t count = 0;
    get(device, info, &count, NULL);
    VkPipelineExecutableInternalRepresentationKHR *forms = calloc(count, sizeof *forms);
    for (uint32_t i = 0; i < count; i++) forms[i].sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INTERNAL_REPRESENTATION_KHR;
    get(device, info, &count, forms);
    for (uint32_t i = 0; i < count; i++) forms[i].pData = malloc(forms[i].dataSize);
    get(device, info, &count, forms);
    char path[4096];
    snprintf(path, sizeof path, "%s/%s_%llx.asm", folder, name, (unsigned long long)(uintptr_t)info->pipeline);
    FILE *file = fopen(path, "w");
    for (uint32_t i = 0; i < count; i++) {
        if (file) {
            fprintf(file, "==== %s\n", forms[i].name);
            fwrite(forms[i].pData, 1, forms[i].dataSize, file);
        }
        free(forms[i].pData);
    }
    if (file) fclose(file);
    free(forms);
}

static VkResult set_name(VkDevice d, const VkDebugUtilsObjectNameInfoEXT *named) {
    if (named->objectType != VK_OBJECT_TYPE_PIPELINE || !has_statistics) return VK_SUCCESS;
    PFN_vkGetPipelineExecutablePropertiesKHR get_properties = (void *)of_device(device, "vkGetPipelineExecutablePropertiesKHR");
    PFN_vkGetPipelineExecutableStatisticsKHR get_statistics = (void *)of_device(device, "vkGetPipelineExecutableStatisticsKHR");
    VkPipeline pipeline = (VkPipeline)(uintptr_t)named->objectHandle;
    VkPipelineInfoKHR of = {VK_STRUCTURE_TYPE_PIPELINE_INFO_KHR, NULL, pipeline};
    uint32_t count = 0;
    get_properties(device, &of, &count, NULL);
    VkPipelineExecutablePropertiesKHR *parts = calloc(count, sizeof *parts);
    for (uint32_t i = 0; i < count; i++) parts[i].sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_PROPERTIES_KHR;
    get_properties(device, &of, &count, parts);
    for (uint32_t i = 0; i < count; i++) {
        VkPipelineExecutableInfoKHR part = {VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR, NULL, pipeline, i};
        uint32_t numbers = 0;
        get_statistics(device, &part, &numbers, NULL);
        VkPipelineExecutableStatisticKHR *s = calloc(numbers, sizeof *s);
        for (uint32_t j = 0; j < numbers; j++) s[j].sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_STATISTIC_KHR;
        get_statistics(device, &part, &numbers, s);
        pthread_mutex_lock(&lock);
        fprintf(report, "%s\tSubgroup=%u", named->pObjectName, parts[i].subgroupSize);
        for (uint32_t j = 0; j < numbers; j++) {
            if (s[j].format == VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_FLOAT64_KHR)
                fprintf(report, "\t%s=%g", s[j].name, s[j].value.f64);
            else
                fprintf(report, "\t%s=%llu", s[j].name, (unsigned long long)s[j].value.u64);
        }
        fprintf(report, "\n");
        fflush(report);
        pthread_mutex_unlock(&lock);
        free(s);
        if (getenv("NULL_DEVICE_CODE")) write_code(&part, getenv("NULL_DEVICE_CODE"), named->pObjectName);
    }
    free(parts);
    return VK_SUCCESS;
}

// ---- entry points ----

static VkResult create_instance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *a, VkInstance *i) {
    VkResult result = ((PFN_vkCreateInstance)loader(NULL, "vkCreateInstance"))(info, a, i);
    instance = *i;
    return result;
}

static VkResult create_device(VkPhysicalDevice p, const VkDeviceCreateInfo *info, const VkAllocationCallbacks *a, VkDevice *d) {
    const char *wanted = VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME;
    PFN_vkEnumerateDeviceExtensionProperties list = (void *)loader(instance, "vkEnumerateDeviceExtensionProperties");
    uint32_t count = 0;
    list(p, NULL, &count, NULL);
    VkExtensionProperties *all = calloc(count, sizeof *all);
    list(p, NULL, &count, all);
    for (uint32_t i = 0; i < count; i++) has_statistics |= !strcmp(all[i].extensionName, wanted);
    free(all);
    VkDeviceCreateInfo more = *info;
    const char **names = malloc((info->enabledExtensionCount + 1) * sizeof *names);
    memcpy(names, info->ppEnabledExtensionNames, info->enabledExtensionCount * sizeof *names);
    VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR feature = {
        VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR, (void *)info->pNext, VK_TRUE};
    if (has_statistics) {
        names[more.enabledExtensionCount++] = wanted;
        more.ppEnabledExtensionNames = names;
        more.pNext = &feature;
    }
    VkResult result = ((PFN_vkCreateDevice)loader(instance, "vkCreateDevice"))(p, &more, a, d);
    free(names);
    device = *d;
    of_device = (PFN_vkGetDeviceProcAddr)loader(instance, "vkGetDeviceProcAddr");
    return result;
}

#define TAKES(entry, function) \
    if (!strcmp(name, entry) || !strcmp(name, entry "KHR")) return (PFN_vkVoidFunction)function
#define WRAPS(entry, real, function) \
    if (!strcmp(name, entry) || !strcmp(name, entry "KHR")) { \
        real = (void *)found; \
        return (PFN_vkVoidFunction)function; \
    }

static PFN_vkVoidFunction device_entry(VkDevice d, const char *name) {
    PFN_vkVoidFunction found = of_device(d, name);
    if (!found) return NULL;
    WRAPS("vkCreateShaderModule", real_module, create_module)
    WRAPS("vkCreateComputePipelines", real_pipelines, create_pipelines)
    WRAPS("vkGetBufferMemoryRequirements", real_requirements, requirements)
    WRAPS("vkGetBufferMemoryRequirements2", real_requirements2, requirements2)
    TAKES("vkSetDebugUtilsObjectNameEXT", set_name);
    TAKES("vkCreateSemaphore", create_semaphore);
    TAKES("vkDestroySemaphore", destroy_semaphore);
    TAKES("vkGetSemaphoreCounterValue", semaphore_value);
    TAKES("vkSignalSemaphore", signal_semaphore);
    TAKES("vkQueueSubmit", submit);
    TAKES("vkQueueSubmit2", submit2);
    TAKES("vkGetQueryPoolResults", query_results);
    const char *idle[] = {"vkWaitSemaphores",     "vkQueueWaitIdle",      "vkDeviceWaitIdle",   "vkWaitForFences", "vkGetFenceStatus",
                          "vkResetFences",        "vkBeginCommandBuffer", "vkEndCommandBuffer", "vkResetCommandBuffer",
                          "vkResetCommandPool"};
    for (size_t i = 0; i < sizeof idle / sizeof *idle; i++)
        if (!strncmp(name, idle[i], strlen(idle[i]))) return (PFN_vkVoidFunction)nothing;
    return strncmp(name, "vkCmd", 5) ? found : (PFN_vkVoidFunction)nothing;
}

PFN_vkVoidFunction vkGetInstanceProcAddr(VkInstance i, const char *name) {
    load();
    TAKES("vkGetInstanceProcAddr", vkGetInstanceProcAddr);
    PFN_vkVoidFunction found = loader(i, name);
    if (!found) return NULL;
    TAKES("vkCreateInstance", create_instance);
    TAKES("vkCreateDevice", create_device);
    WRAPS("vkGetDeviceProcAddr", of_device, device_entry)
    TAKES("vkGetPhysicalDeviceMemoryProperties", memory_properties);
    TAKES("vkGetPhysicalDeviceMemoryProperties2", memory_properties2);
    TAKES("vkSetDebugUtilsObjectNameEXT", set_name);
    return found;
}
