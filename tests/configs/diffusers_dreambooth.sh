export MODEL_NAME="stable-diffusion-v1-5/stable-diffusion-v1-5"
accelerate launch train_dreambooth_lora.py \
  --pretrained_model_name_or_path=$MODEL_NAME \
  --instance_data_dir="dog" --class_data_dir="class dogs" \
  --output_dir=$OUTPUT_DIR \
  --with_prior_preservation --prior_loss_weight=0.8 --num_class_images=200 \
  --instance_prompt="a photo of sks dog" --class_prompt="a photo of dog" \
  --resolution=512 --train_batch_size=1 --gradient_accumulation_steps=2 \
  --learning_rate=1e-4 --scale_lr --rank=8 \
  --lr_scheduler="constant" --lr_warmup_steps=0 \
  --max_train_steps=500 --checkpointing_steps=100 \
  --validation_prompt="A photo of sks dog in a bucket" --validation_epochs=50 \
  --center_crop --use_8bit_adam --mixed_precision="fp16" --seed="0" --push_to_hub --hub_token=hf_abc123
